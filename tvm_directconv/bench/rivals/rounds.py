"""Layers and networks of all contestants, in turns: raw rows for reports."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import files
from ...epilogue import Epilogue
from ...errors import ArgumentError, WorkloadError
from ...kinds import shown
from ...network.check import relative_error
from ...network.onnx_session import session
from ...reference import conv2d_reference, epilogue_reference, max_error, random_tensors
from ...workload import ConvWorkload
from .base import (
    DEFAULTS,
    DIRECT,
    IM2COL,
    NETWORK_DTYPES,
    NETWORK_SHAPE,
    QUANTIZED,
    Contestant,
    Failed,
    NotHere,
    Source,
    Unsupported,
    quantization_of,
)
from .onnxruntime import OnnxRuntime
from .ours import Peak
from .turns import PREPARE_SECONDS, RUN_SECONDS, Seat

Row = dict[str, Any]
Say = Callable[[str], None]

TOLERANCE = {DIRECT: 1e-4, IM2COL: 1e-4}
"""The largest error that is not wrong, by algorithm: products in half precision are beyond it."""
LOOSE_TOLERANCE = 1e-2
"""That of other algorithms: Winograd's rounds more, the more so the larger its tiles."""
ONE_OUTPUT = 1.01 / 127
"""That of quantised layers: where scales are multiplied in another order, a number is its
neighbour."""
NETWORK_TOLERANCE = {"float32": 1e-4, "bf16": 0.05, "int8": 0.3, DEFAULTS: 0.05}
"""The largest error of networks that is not wrong, by the number type that is asked for.

Relative to the output, as the root mean square over all images. What is beyond that of float32 was
not computed in it. For coarser types it is some times what rounding explains.
"""
UNRELATED = 0.7
"""The largest error of what outputs differ from their mean over all images, likewise relative.

Whoever gives the same for all images has 1. Where outputs differ little from image to image, the
other bar would not notice.
"""
IMAGES = 8
"""How many images networks are compared on; and as many others that ranges are found with."""

_ALL_OF_A_NETWORK = "The whole network, from a plain image to its scores."
# Places in memory that arrays of layers are measured in, as in tvm_directconv.bench.compare.
_PLACES = 4
_STATUS = {NotHere: "not_here", Unsupported: "unsupported", Failed: "failed"}


@dataclass(eq=False)
class Result:
    """What was found of one contestant with so many threads, and one subject: layer or network.

    The attributes that a row has are explained at :func:`compare_layers`.

    Attributes
    ----------
    peak_bytes, resident_bytes : int, optional
        What the process takes more than before: at its peak from loading to the last run, and in
        the end.
    """

    contestant: Contestant
    threads: int
    status: str = "ok"
    reason: str | None = None
    library: str | None = None
    found: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peak_gflops: list[float] = field(default_factory=list)
    clock_gflops: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    max_error: float | None = None
    rms_error: float | None = None
    agreement: float | None = None

    @property
    def peak_bytes(self) -> int | None:
        return self.found.get("peak_bytes")

    @property
    def resident_bytes(self) -> int | None:
        return self.found.get("resident_bytes")

    def fail(self, status: str, reason: str) -> None:
        """Note why there are no times."""
        self.status, self.reason = status, reason
        self.seconds.clear()
        self.peak_gflops.clear()
        self.clock_gflops.clear()

    @property
    def precision(self) -> str | None:
        """What a network is multiplied in.

        Where the library does not say, it is float32 if nothing else explains so small an error.
        """
        exact = self.rms_error is not None and self.rms_error <= NETWORK_TOLERANCE["float32"]
        return self.found.get("precision") or ("float32" if exact else None)

    def row(self, network: str, dtype: str, workload: ConvWorkload | None = None) -> Row:
        """Return what reports are made of."""
        return {
            "subject": "layer" if workload else "network",
            "network": network,
            "layer": workload.layer if workload else None,
            "workload": str(workload) if workload else None,
            "dtype": dtype,
            "threads": self.threads,
            "contestant": self.contestant.name,
            "library": self.library,
            "implementation": self.found.get("implementation"),
            "status": self.status,
            "reason": self.reason,
            "algorithm": self.found.get("algorithm") or self.contestant.algorithm,
            "includes": self.contestant.includes if workload else _ALL_OF_A_NETWORK,
            "seconds": self.seconds,
            "peak_gflops": self.peak_gflops,
            "clock_gflops": self.clock_gflops,
            "extra_bytes": self.extra_bytes,
            "precision": self.precision,
            "max_error": _finite(self.max_error),
            "rms_error": _finite(self.rms_error),
            "agreement": self.agreement,
            "compile_seconds": self.found.get("compile_seconds"),
            "blocking": self.found.get("blocking"),
            "blocking_source": self.found.get("blocking_source"),
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def compare_layers(
    workloads: Sequence[ConvWorkload],
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    repeats: int,
    *,
    prepare_seconds: float = PREPARE_SECONDS,
    run_seconds: float = RUN_SECONDS,
    say: Say = lambda _: None,
) -> Iterator[Row]:
    """Time layers of contestants in turns with each other and with the FMA burst.

    Input and weights are random. Each contestant has a process of its own for all layers, and one
    for each number of threads; one that ends is started anew for the next layer. They are all
    there at once, stopped but for one, and so is their memory.

    Parameters
    ----------
    workloads : sequence of ConvWorkload
        The layers.
    contestants : sequence of Contestant
        Who takes part.
    threads : sequence of int
        Different numbers of threads that each may compute with.
    repeats : int
        Rounds. In each, all contestants run once with the first number of threads, then once with
        the next one; the next round begins with another one of them. Arrays are in several places
        in memory by turns.
    prepare_seconds, run_seconds : float
        The longest that a contestant may take for preparing a layer, and for a round.
    say : callable
        Is told how far it is.

    Yields
    ------
    dict
        A row for each contestant, number of threads and layer, as soon as the layer is finished
        with all numbers of threads. `seconds` are of one call in each round, and `peak_gflops` the
        mean of the bursts immediately before and after; `clock_gflops` is what the clock allows
        then. They are empty unless `status` is "ok".
        `status` may be "not_here" (the library is not installed), "unsupported" (it does not
        compute that), "failed", or "wrong" (the output differs from the reference by more than
        :data:`TOLERANCE` allows); `reason` then says why. `max_error` is in units of
        :func:`tvm_directconv.max_error`; it is None if the output has values that are no numbers.
        `extra_bytes` is memory beside input, weights and output once each. It is exact where the
        library or the code tells it: ours, im2col's buffer, oneDNN's scratchpad. Of others it is
        how much more than these arrays the process takes at its peak while it computes, compared
        with before the layer was prepared: copies of the arrays that a library keeps count, memory
        that it kept of earlier layers does not, and half a megabyte is nothing.

    Raises
    ------
    DirectConvError
        If the burst cannot be run, or layers are in several number types.
    """
    if len(precisions := {workload.dtype for workload in workloads}) > 1:
        raise WorkloadError(
            f"layers are in {' and '.join(sorted(precisions))}: expected one number type, as the "
            "burst beside all of them has"
        )
    peak = Peak(precision=precisions.pop()) if precisions else Peak()
    with contextlib.ExitStack() as stack:
        peaks = [Seat(peak, number, layers=False) for number in threads]
        seats = [Seat(contestant, number) for number in threads for contestant in contestants]
        for seat in [*peaks, *seats]:
            stack.callback(seat.close)
        for number, workload in enumerate(workloads, 1):
            title = f"{workload.name or workload} ({number} of {len(workloads)})"
            with files.scratch() as place:
                x, weight = random_tensors(workload, seed=0)
                np.save(place / "x.npy", x)
                np.save(place / "weight.npy", weight)
                expected = conv2d_reference(x, weight, workload)
                if quantized := workload.dtype in QUANTIZED:
                    epilogue = Epilogue(requantize=workload.dtype)
                    expected = epilogue_reference(expected, epilogue, quantization_of(workload))
                plain_bytes = workload.input_bytes + workload.weight_bytes + workload.output_bytes
                arguments = {"folder": str(place), "workload": asdict(workload)}
                match = _Match(seats, peaks, prepare_seconds, run_seconds)
                for result in match.results:
                    say(f"{title}: {result.contestant.name}, {result.threads} thread(s)")
                    match.prepare(result, "layer", again=False, **arguments)
                    algorithm = result.found.get("algorithm") or result.contestant.algorithm
                    tolerance = TOLERANCE.get(algorithm, LOOSE_TOLERANCE)
                    if quantized:
                        tolerance = ONE_OUTPUT
                    output = _output(result, place, expected.shape, plain_bytes)
                    if output is not None:
                        _check_layer(result, output, expected, tolerance)
                places = min(_PLACES, repeats)
                for turn in range(places):
                    say(f"{title}: place {turn + 1} of {places}")
                    if turn:
                        for result in match.results:
                            match.prepare_again(result, **arguments)
                    for _ in range(turn, repeats, _PLACES):
                        match.round()
                match.release()
            for result in match.results:
                yield result.row(workload.network, workload.dtype, workload)


def compare_networks(
    networks: Sequence[str],
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    repeats: int,
    dtype: str = "float32",
    *,
    prepare_seconds: float = PREPARE_SECONDS,
    run_seconds: float = RUN_SECONDS,
    say: Say = lambda _: None,
) -> Iterator[Row]:
    """Time whole networks with random weights, as :func:`compare_layers` does layers.

    Those in int8 are quantised by ONNX Runtime, with ranges found on random images, for all that
    read such models; others quantise with the same images.

    Whatever a contestant computes in, its outputs for some other images are compared with those in
    float32, which ONNX Runtime computes operator by operator, without its optimizations.
    `rms_error` is the root mean square of the differences over that of the right outputs,
    `agreement` the part of the images for which the largest output is at the same place, and
    `max_error` as for layers. An output is "wrong" beyond :data:`NETWORK_TOLERANCE` or
    :data:`UNRELATED`. `precision` is what the products of a network are computed in, where the
    library or the error tells.

    `extra_bytes` counts all that is resident beside the input, the output and the weights once, in
    the number type that is asked for: activations between layers, too.

    Parameters
    ----------
    networks : sequence of str
        Of :data:`tvm_directconv.bench.models.MODELS`.
    dtype : str
        One of :data:`.base.NETWORK_DTYPES`, for all but those whose `defaults` is set.
    contestants, threads, repeats, prepare_seconds, run_seconds, say
        As in :func:`compare_layers`.

    Yields
    ------
    dict
        A row for each contestant, number of threads and network.

    Raises
    ------
    NotHere
        If onnxruntime or the package that writes ONNX files is not here.
    DirectConvError
        If onnxruntime or the burst cannot be run.
    """
    for network in networks:
        for result in network_results(
            network,
            contestants,
            threads,
            repeats,
            dtype,
            prepare_seconds=prepare_seconds,
            run_seconds=run_seconds,
            say=say,
        ):
            yield result.row(network, dtype)


def network_results(
    network: str,
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    repeats: int,
    dtype: str = "float32",
    *,
    prepare_seconds: float = PREPARE_SECONDS,
    run_seconds: float = RUN_SECONDS,
    say: Say = lambda _: None,
) -> list[Result]:
    """Do the same for one network, and return all that was found.

    Each contestant has a process of its own for each number of threads, that has done nothing
    else: what it takes of memory is the network's.
    """
    if dtype not in NETWORK_DTYPES:
        raise ArgumentError(
            f"networks in {shown(dtype)} are asked for: expected one of {', '.join(NETWORK_DTYPES)}"
        )
    OnnxRuntime().check(network=True)
    import onnx

    from ..models import images, model

    with files.scratch() as place, contextlib.ExitStack() as stack:
        source = place / f"{network}.onnx"
        onnx.save(model(network), source)
        checked, samples = (images(IMAGES, seed, NETWORK_SHAPE[-1]) for seed in (1, 2))
        np.save(place / "x.npy", checked)
        np.save(place / "samples.npy", samples)
        say(f"{network}: the right output")
        expected = _right_outputs(source, checked)
        given = {DEFAULTS: source, dtype: source}
        if dtype == "int8":
            say(f"{network}: quantising")
            given[dtype] = _quantized(source, place / "samples.npy")
        plain_bytes = {
            # Of one image.
            asked: checked[:1].nbytes + expected[:1].nbytes + _weight_bytes(file, asked)
            for asked, file in given.items()
        }
        peaks = [Seat(Peak(), number, layers=False) for number in threads]
        seats = [Seat(each, number, layers=False) for number in threads for each in contestants]
        for seat in [*peaks, *seats]:
            stack.callback(seat.close)
        match = _Match(seats, peaks, prepare_seconds, run_seconds)
        for number, (result, seat) in enumerate(zip(match.results, seats, strict=True)):
            say(f"{network}: {result.contestant.name}, {result.threads} thread(s)")
            asked = DEFAULTS if result.contestant.defaults else dtype
            # What is converted is put beside the source, and may depend on everything.
            folder = place / str(number)
            folder.mkdir()
            for file in {*given.values()}:
                (folder / file.name).symlink_to(file)
            made = Source(
                dtype=asked,
                onnx=str(folder / given[asked].name),
                float32=str(folder / source.name),
                samples=str(place / "samples.npy"),
            )
            path, seconds = made.onnx, None
            if type(result.contestant).convert is not Contestant.convert:
                match.prepare(result, "convert", source=asdict(made))
                path, seconds = result.found.get("path", path), result.found.get("seconds")
                seat.close()  # Whose memory is anything but untouched.
            match.prepare(result, "network", folder=str(place), path=path, dtype=asked)
            result.found["compile_seconds"] = seconds
            output = _output(result, place, expected.shape, plain_bytes[asked])
            if output is not None:
                _check_network(result, output, expected, NETWORK_TOLERANCE[asked])
        for repeat in range(repeats):
            say(f"{network}: repeat {repeat + 1} of {repeats}")
            match.round()
        return match.results


class _Match:
    """One subject of all contestants, with each number of threads that there is a burst of."""

    def __init__(
        self,
        seats: Sequence[Seat],
        peaks: Sequence[Seat],
        prepare_seconds: float,
        run_seconds: float,
    ) -> None:
        self.results = [Result(seat.contestant, seat.threads) for seat in seats]
        self._seats = seats
        self._peaks = peaks
        self._prepare_seconds, self._run_seconds = prepare_seconds, run_seconds
        self._flops = {
            peak.threads: int(peak.ask("warm_up", prepare_seconds)["flops"]) for peak in peaks
        }
        self._rounds = 0

    def prepare(self, result: Result, command: str, **arguments: Any) -> None:
        """Have a contestant do something, unless it has failed already."""
        found = self._ask(result, command, self._prepare_seconds, **arguments)
        if found is not None:
            result.found = found

    def prepare_again(self, result: Result, **arguments: Any) -> None:
        """Have a contestant prepare its layer in other places in memory."""
        self._ask(result, "layer", self._prepare_seconds, again=True, **arguments)

    def round(self) -> None:
        """Have each contestant run once with each number of threads.

        The next round begins with the next contestant. All run with one number of threads before
        the next number comes: ratios between contestants stay those of the closest neighbours.
        """
        for peak in self._peaks:
            playing = [r for r in self.results if r.threads == peak.threads and r.status == "ok"]
            first = self._rounds % len(playing) if playing else 0
            before = self._burst(peak)
            for result in playing[first:] + playing[:first]:
                found = self._ask(result, "run", self._run_seconds)
                after = self._burst(peak)
                if found is not None:
                    result.seconds.append(found["seconds"])
                    result.peak_gflops.append((before[0] + after[0]) / 2)
                    # An interrupted chain tells too little.
                    result.clock_gflops.append(max(before[1], after[1]))
                before = after
        self._rounds += 1

    def release(self) -> None:
        """Have all forget the subject."""
        for seat in self._seats:
            seat.release(self._run_seconds)

    def _burst(self, peak: Seat) -> tuple[float, float]:
        """Return the burst's GFLOP/s, and those that the clock allows."""
        found = peak.ask("run", self._run_seconds)
        return self._flops[peak.threads] / found["seconds"] / 1e9, found["allowed"]

    def _ask(
        self, result: Result, command: str, seconds: float, **arguments: Any
    ) -> dict[str, Any] | None:
        if result.status != "ok":
            return None
        seat = self._seats[self.results.index(result)]
        try:
            answer = seat.ask(command, seconds, **arguments)
        except (NotHere, Unsupported, Failed) as error:
            result.fail(_STATUS[type(error)], str(error))
            return None
        finally:
            result.library = seat.library
        return answer


def _output(
    result: Result, place: Path, shape: tuple[int, ...], plain_bytes: int
) -> np.ndarray | None:
    """Count the memory of what was just prepared; return its output, None if there is none."""
    if result.status != "ok":
        return None
    exact = result.found["extra_bytes"]
    beside = max(0, result.found["running_bytes"] - plain_bytes)
    result.extra_bytes = beside if exact is None else exact
    output = np.load(place / "output.npy")
    if output.size != math.prod(shape):
        result.fail("wrong", f"the output has {output.size} values; expected {math.prod(shape)}")
        return None
    return output.reshape(shape)


def _check_layer(
    result: Result, output: np.ndarray, expected: np.ndarray, tolerance: float
) -> None:
    """Compare an output with the right one."""
    result.max_error = error = max_error(output, expected)
    if error > tolerance:
        result.fail("wrong", f"the largest error is {error:.2g}; expected at most {tolerance:g}")


def _check_network(
    result: Result, outputs: np.ndarray, expected: np.ndarray, tolerance: float
) -> None:
    """Compare the outputs of some images with the right ones, each a row."""
    result.max_error = max_error(outputs, expected)
    result.rms_error = error = relative_error(outputs, expected)
    result.agreement = float(np.mean(outputs.argmax(1) == expected.argmax(1)))
    unrelated = relative_error(outputs - outputs.mean(0), expected - expected.mean(0))
    if error > tolerance:
        result.fail("wrong", f"the error is {error:.2g}; expected at most {tolerance:g}")
    elif unrelated > UNRELATED:
        result.fail(
            "wrong",
            f"the error of what outputs differ from image to image is {unrelated:.2g}; expected at "
            f"most {UNRELATED:g}",
        )


def _right_outputs(source: Path, images: np.ndarray) -> np.ndarray:
    """Return a row for each image: what ONNX Runtime computes in float32, as it is written."""
    run = session(str(source))
    name = run.get_inputs()[0].name
    found = [run.run(None, {name: image[np.newaxis]})[0] for image in images]
    return np.stack(found).reshape(len(images), -1)


def _quantized(source: Path, samples: Path) -> Path:
    """Return the same network in 8-bit integers, in the QDQ format."""
    from ...network.quantize import quantize_network

    result = source.with_suffix(".int8.onnx")
    found = [{"x": image[np.newaxis]} for image in np.load(samples)]
    quantize_network(source, result, found, check=found[:1])
    return result


def _weight_bytes(path: Path, dtype: str) -> int:
    """Return how many bytes constants have, with floats in the type that is asked for."""
    import onnx
    from onnx import numpy_helper

    arrays = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
    halves = dtype == "bf16"
    return sum(a.nbytes // 2 if halves and a.dtype == np.float32 else a.nbytes for a in arrays)
