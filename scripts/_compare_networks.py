"""What scripts/compare_networks runs: networks in turns with other libraries.

Each contestant is loaded in a process of its own. So its memory can be told from that of others,
no library changes threads or affinities of another one, and what crashes takes nothing along. One
process runs at a time, and all others are stopped: threads of some libraries, ours too, wait
busily for more work long after a run.
"""

import argparse
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any, ClassVar

import numpy as np

from tvm_directconv import DirectConvError, max_error
from tvm_directconv.bench.models import MODELS, model
from tvm_directconv.cli._options import add_blocking, add_threads, positive
from tvm_directconv.cli._output import Row, add_format, for_people, render
from tvm_directconv.layout import aligned_zeros

NETWORKS = ["alexnet", "vgg16", "googlenet", "resnet50", "mobilenetv1", "mobilenetv2"]
SHAPE = (1, 3, 224, 224)
TOLERANCE = 1e-3  # Winograd's algorithm rounds more than direct convolutions do.
RUNS_FOR_MEMORY = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SAID = 300  # characters
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux.

Call = Callable[[], np.ndarray]


class Unavailable(DirectConvError):
    """Why a contestant does not take part."""


class Contestant:
    """A library, and with an instance a network that it has loaded for so many threads.

    Attributes
    ----------
    name : str
        In tables.
    packages : dict of str to str
        Python packages that it needs, the library itself first, and what for.
    """

    name: ClassVar[str]
    packages: ClassVar[dict[str, str]]

    @classmethod
    def convert(cls, onnx: Path, threads: int, blocking: str) -> Path:
        """Return the file that the library loads, made of an ONNX file and put beside it."""
        return onnx

    @classmethod
    def load_library(cls) -> None:
        """Load all code, so that memory is counted from there."""
        importlib.import_module(next(iter(cls.packages)))

    def __init__(self, path: Path, threads: int) -> None:
        raise NotImplementedError

    def bind(self, x: np.ndarray) -> Call:
        """Return what computes the output of `x`."""
        raise NotImplementedError


class Ours(Contestant):
    name = "tvm-directconv"
    packages: ClassVar = {"tvm_directconv": ""}

    @classmethod
    def convert(cls, onnx: Path, threads: int, blocking: str) -> Path:
        from tvm_directconv import compile_network

        library = onnx.with_suffix(".so")
        compile_network(onnx, library, threads=threads, blocking=blocking)
        return library

    @classmethod
    def load_library(cls) -> None:
        importlib.import_module("tvm")

    def __init__(self, path: Path, threads: int) -> None:
        from tvm_directconv import load_network

        self._network = load_network(path)

    def bind(self, x: np.ndarray) -> Call:
        call, outputs = self._network.bind(x)

        def run() -> np.ndarray:
            call()
            return outputs[0]

        return run


class OnnxRuntime(Contestant):
    name = "onnxruntime"
    packages: ClassVar = {"onnxruntime": ""}

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def bind(self, x: np.ndarray) -> Call:
        return lambda: self._session.run(None, {"x": x})[0]


class OpenVino(Contestant):
    name = "openvino"
    packages: ClassVar = {"openvino": ""}

    @classmethod
    def load_library(cls) -> None:
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # Loads the code for processors.

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._request = openvino.compile_model(path, "CPU", settings).create_infer_request()

    def bind(self, x: np.ndarray) -> Call:
        import openvino

        self._request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def run() -> np.ndarray:
            self._request.infer()
            return self._request.get_output_tensor().data

        return run


class PyTorch(Contestant):
    name = "pytorch"
    packages: ClassVar = {"torch": "", "onnx2torch": ", which reads ONNX files for it,"}

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        from onnx2torch import convert

        torch.set_num_threads(threads)
        with torch.inference_mode():
            traced = torch.jit.trace(convert(str(path)).eval(), torch.zeros(SHAPE))
            self._network = torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def bind(self, x: np.ndarray) -> Call:
        import torch

        tensor = torch.from_numpy(x)

        def run() -> np.ndarray:
            with torch.inference_mode():
                return self._network(tensor).numpy()

        return run


class LiteRt(Contestant):
    name = "litert"
    packages: ClassVar = {
        "ai_edge_litert": "",
        "onnx2tf": ", which makes .tflite files of ONNX files,",
    }

    @classmethod
    def convert(cls, onnx: Path, threads: int, blocking: str) -> Path:
        folder = onnx.with_suffix(".tf")
        folder.mkdir()
        # onnx2tf writes into the file that it reads, and the others read that, too.
        copy = shutil.copy(onnx, folder)
        # Without a program that it would use only where it is installed.
        program = (
            "import sys, onnx2tf; "
            "onnx2tf.convert(input_onnx_file_path=sys.argv[1], output_folder_path=sys.argv[2], "
            "not_use_onnxsim=True)"
        )
        _call([sys.executable, "-c", program, str(copy), str(folder)])
        return folder / f"{onnx.stem}_float32.tflite"

    @classmethod
    def load_library(cls) -> None:
        importlib.import_module("ai_edge_litert.interpreter")

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._network = Interpreter(str(path), num_threads=threads)
        self._network.allocate_tensors()

    def bind(self, x: np.ndarray) -> Call:
        (source,), (result,) = self._network.get_input_details(), self._network.get_output_details()
        # Once, as runs leave inputs as they are; onnx2tf puts channels last.
        self._network.set_tensor(source["index"], np.ascontiguousarray(x.transpose(0, 2, 3, 1)))

        def run() -> np.ndarray:
            self._network.invoke()
            return self._network.get_tensor(result["index"])

        return run


class Ncnn(Contestant):
    name = "ncnn"
    packages: ClassVar = {"ncnn": "", "pnnx": ", which converts ONNX files for it,"}
    _winograd = True

    @classmethod
    def convert(cls, onnx: Path, threads: int, blocking: str) -> Path:
        path = onnx.with_suffix(".ncnn.param")
        if not path.exists():  # Both variants have the same.
            # The program only: its Python package imports PyTorch.
            spec = importlib.util.find_spec("pnnx")
            assert spec and spec.origin
            shape = f"inputshape=[{','.join(map(str, SHAPE))}]"
            _call([str(Path(spec.origin).with_name("pnnx")), str(onnx), shape, "fp16=0"])
        return path

    def __init__(self, path: Path, threads: int) -> None:
        import ncnn

        self._network = ncnn.Net()
        options = self._network.opt
        options.num_threads = threads
        options.use_winograd_convolution = self._winograd
        for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{half}", False)
        files = (path, path.with_suffix(".bin"))
        loads = (self._network.load_param, self._network.load_model)
        for load, file in zip(loads, files, strict=True):
            if load(str(file)):
                raise Unavailable(f"ncnn cannot load {file.name}")

    def bind(self, x: np.ndarray) -> Call:
        import ncnn

        image = ncnn.Mat(x[0])

        def run() -> np.ndarray:
            extractor = self._network.create_extractor()
            extractor.input("in0", image)
            _, output = extractor.extract("out0")
            return np.array(output)

        return run


class NcnnDirect(Ncnn):
    name = "ncnn, no Winograd"
    _winograd = False


class Mnn(Contestant):
    name = "mnn"
    packages: ClassVar = {"MNN": ""}

    @classmethod
    def convert(cls, onnx: Path, threads: int, blocking: str) -> Path:
        path = onnx.with_suffix(".mnn")
        # Not by MNN.tools: to import that installs packages with pip, and calls a server.
        program = "import sys, _tools; _tools.mnnconvert(sys.argv)"
        files = ["--modelFile", str(onnx), "--MNNModel", str(path)]
        _call([sys.executable, "-c", program, "-f", "ONNX", *files])
        return path

    @classmethod
    def load_library(cls) -> None:
        importlib.import_module("MNN.nn")

    def __init__(self, path: Path, threads: int) -> None:
        from MNN import nn

        settings = {"backend": "CPU", "precision": "high", "numThread": threads}
        self._runtime = nn.create_runtime_manager((settings,))
        self._network = nn.load_module_from_file(
            str(path), ["x"], ["logits"], runtime_manager=self._runtime
        )

    def bind(self, x: np.ndarray) -> Call:
        from MNN import expr

        image = expr.const(x, list(x.shape), expr.NCHW)
        return lambda: self._network.forward(image).read()


# The first is what the others are compared with, the second has the right outputs.
CONTESTANTS: tuple[type[Contestant], ...] = (
    Ours,
    OnnxRuntime,
    OpenVino,
    PyTorch,
    LiteRt,
    Ncnn,
    NcnnDirect,
    Mnn,
)


def _call(command: list[str]) -> None:
    """Run a converter."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Unavailable(f"{_end(done.stderr or done.stdout)} (status {done.returncode})")


def _end(text: str) -> str:
    """Return the end of what a program said, where the reason usually is."""
    words = " ".join(text.split())
    return f"... {words[-_SAID:]}" if len(words) > _SAID else words or "it said nothing"


class Process:
    """A contestant in a process of its own; see :func:`serve`.

    Attributes
    ----------
    report : dict
        What the process tells first.
    """

    def __init__(self, contestant: type[Contestant], path: Path, threads: int) -> None:
        self._log = path.with_name(f"{contestant.__name__}.log")
        command = [sys.executable, __file__, "--threads", str(threads)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--contestant", contestant.__name__, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
            )
        try:
            self.report = self._read()
        except BaseException:
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def seconds(self) -> float:
        """Have it compute once more, and return how long that took."""
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # To read tells why it has ended.
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        found = float(self._read()["seconds"])
        self._process.send_signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise Unavailable(f"{_end(self._log.read_text(errors='replace'))} (status {status})")
        return json.loads(line)


def serve(name: str, path: Path, threads: int) -> None:
    """Load a network and tell its output and memory; then run it for each line that is read."""
    # A stopped process would not see that nobody tells it anything any more.
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print what they like.
    contestant = next(c for c in CONTESTANTS if c.__name__ == name)
    x = aligned_zeros(SHAPE)
    x[...] = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    contestant.load_library()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # The peak is of what comes now.
    before = _memory("VmRSS")
    call = contestant(path, threads).bind(x)
    for _ in range(RUNS_FOR_MEMORY):
        output = call()
    report = {
        "peak_bytes": _memory("VmHWM") - before,
        "resident_bytes": _memory("VmRSS") - before,
        "output": output.ravel().tolist(),
    }
    print(json.dumps(report), file=channel, flush=True)
    for _ in sys.stdin:
        call()  # Others have had the caches since.
        begin = time.perf_counter()
        call()
        print(json.dumps({"seconds": time.perf_counter() - begin}), file=channel, flush=True)


def _memory(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


@contextlib.contextmanager
def started(
    network: str, threads: int, blocking: str
) -> Iterator[tuple[dict[str, Process], dict[str, str]]]:
    """Start all contestants that can be; with the others' names come reasons."""
    import onnx

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        source = Path(folder) / f"{network}.onnx"
        onnx.save(model(network), source)
        running: dict[str, Process] = {}
        reasons: dict[str, str] = {}
        for contestant in CONTESTANTS:
            say(f"{network}: {contestant.name}")
            try:
                for package, purpose in contestant.packages.items():
                    if not importlib.util.find_spec(package):
                        raise Unavailable(f"Python package {package}{purpose} is not installed")
                process = Process(
                    contestant, contestant.convert(source, threads, blocking), threads
                )
            except Unavailable as error:
                reasons[contestant.name] = str(error)
                continue
            except Exception as error:  # Whatever compiling a network raises.
                reasons[contestant.name] = f"{type(error).__name__}: {_end(str(error))}"
                continue
            stack.callback(process.close)
            running[contestant.name] = process
        yield running, reasons


def compared(network: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each contestant.

    Raises
    ------
    DirectConvError
        If the one with the right outputs is not here.
    """
    with started(network, args.threads, args.blocking) as (running, reasons):
        reference = CONTESTANTS[1].name
        if reference not in running:
            raise DirectConvError(
                f"{reference} is not here ({reasons[reference]}): expected it, as outputs are "
                "compared with its; scripts/compare_networks tells how to install it"
            )
        seconds: dict[str, list[float]] = {name: [] for name in running}
        names = list(running)
        for repeat in range(args.repeat):
            say(f"{network}: repeat {repeat + 1} of {args.repeat}")
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(running[name].seconds())
    right = np.array(running[reference].report["output"])
    rows = []
    for contestant in CONTESTANTS:
        name = contestant.name
        process, times = running.get(name), seconds.get(name)
        error = max_error(np.array(process.report["output"]), right) if process else None
        over = (
            np.divide(times, seconds[CONTESTANTS[0].name])
            if times and CONTESTANTS[0].name in seconds
            else None
        )
        rows.append(
            {
                "network": network,
                "contestant": name,
                "version": importlib.metadata.version(next(iter(contestant.packages)))
                if process
                else None,
                "threads": args.threads,
                **_percentiles("seconds", times),
                **_percentiles("over_ours", over),
                "max_error": error if error is not None and np.isfinite(error) else None,
                "wrong": error > TOLERANCE if error is not None else None,
                "peak_bytes": process.report["peak_bytes"] if process else None,
                "resident_bytes": process.report["resident_bytes"] if process else None,
                "not_here": reasons.get(name),
            }
        )
    return rows


def _percentiles(key: str, values: Any) -> dict[str, float | None]:
    return {
        f"{key}_p{p}": None if values is None else float(np.percentile(values, p))
        for p in (20, 50, 80)
    }


def for_eyes(row: dict[str, Any]) -> Row:
    """Return a row of JSON as one of a table."""
    over, error = row["over_ours_p50"], row["max_error"]
    return {
        "network": row["network"],
        "contestant": f"{row['contestant']} {row['version']}",
        "ms": f"{row['seconds_p50'] * 1e3:.2f}",
        "over ours": f"{over:.3f}" if over else "",
        "p20 to p80": f"{row['over_ours_p20']:.3f} to {row['over_ours_p80']:.3f}" if over else "",
        "max error": ("inf" if error is None else f"{error:.1e}") + " WRONG" * row["wrong"],
        "peak MB": f"{row['peak_bytes'] / 1e6:.1f}",
        "resident MB": f"{row['resident_bytes'] / 1e6:.1f}",
    }


def summaries(rows: list[dict[str, Any]]) -> list[str]:
    """Say how much longer each contestant takes, and who is not here."""
    lines = []
    for contestant in CONTESTANTS:
        own = [row for row in rows if row["contestant"] == contestant.name]
        over = {
            r["network"]: r["over_ours_p50"] for r in own if r["over_ours_p50"] and not r["wrong"]
        }
        if over and contestant is not CONTESTANTS[0]:
            least, most = min(over, key=over.__getitem__), max(over, key=over.__getitem__)
            lines.append(
                f"{contestant.name} takes {geometric_mean(over.values()):.3f} times as long as "
                f"ours (geometric mean of {len(over)}), from {over[least]:.3f} ({least}) to "
                f"{over[most]:.3f} ({most})"
            )
        reasons: dict[str, list[str]] = {}
        for row in own:
            if row["not_here"]:
                reasons.setdefault(row["not_here"], []).append(row["network"])
        lines += [
            f"{contestant.name} is not here ({', '.join(networks)}): {reason}"
            for reason, networks in reasons.items()
        ]
    return lines


def say(text: str) -> None:
    """Tell people how far it is, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/compare_networks",
        description="Time whole networks with random weights, of one image in float32, in turns "
        "with other libraries. 'over ours' is the median, over the repeats, of a library's time "
        "over that of tvm-directconv: above 1, tvm-directconv is faster. Memory is what a process "
        "takes for loading a network and running it three times, after the library's code is "
        "loaded: at its peak, and in the end.",
    )
    parser.add_argument(
        "network",
        nargs="*",
        metavar="NETWORK",
        help=f"of {', '.join(MODELS)}; default: {' '.join(NETWORKS)}",
    )
    add_threads(parser)
    add_blocking(parser)
    parser.add_argument(
        "--repeat", type=positive, default=15, metavar="R", help="measurements; default: 15"
    )
    add_format(parser)
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)  # For `Process`.
    args = parser.parse_args()
    if args.contestant:
        name, path = args.contestant
        serve(name, Path(path), args.threads)
        return 0
    networks = args.network or NETWORKS
    if unknown := [name for name in networks if name not in MODELS]:
        parser.error(f"there is no network {unknown[0]!r}: expected some of {', '.join(MODELS)}")
    rows = [row for network in networks for row in compared(network, args)]
    here = [row for row in rows if not row["not_here"]]
    text = render(rows, args.format, [for_eyes(row) for row in here])
    if for_people(args.format):
        bullet = "- " if args.format == "markdown" else ""
        text += "\n\n" + "\n".join(bullet + line for line in summaries(rows))
    print(text)
    ours = [row for row in rows if row["contestant"] == CONTESTANTS[0].name]
    return 1 if any(row["wrong"] or row["not_here"] for row in ours) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DirectConvError as error:
        sys.exit(f"scripts/compare_networks: error: {error}")
