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
from ...errors import WorkloadError
from ...reference import conv2d_reference, epilogue_reference, max_error, random_tensors
from ...workload import ConvWorkload
from .base import (
    DIRECT,
    IM2COL,
    NETWORK_SHAPE,
    QUANTIZED,
    Contestant,
    Failed,
    NotHere,
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
NETWORK_TOLERANCE = 1e-3
"""That of networks."""

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

    def row(self, network: str, workload: ConvWorkload | None = None) -> Row:
        """Return what reports are made of."""
        finite = self.max_error is not None and math.isfinite(self.max_error)
        return {
            "subject": "layer" if workload else "network",
            "network": network,
            "layer": workload.layer if workload else None,
            "workload": str(workload) if workload else None,
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
            "max_error": self.max_error if finite else None,
            "compile_seconds": self.found.get("compile_seconds"),
            "blocking": self.found.get("blocking"),
            "blocking_source": self.found.get("blocking_source"),
        }


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
                    _check(result, place, expected, plain_bytes, tolerance)
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
                yield result.row(workload.network, workload)


def compare_networks(
    networks: Sequence[str],
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    repeats: int,
    *,
    prepare_seconds: float = PREPARE_SECONDS,
    run_seconds: float = RUN_SECONDS,
    say: Say = lambda _: None,
) -> Iterator[Row]:
    """Time whole networks with random weights, as :func:`compare_layers` does layers.

    Outputs are compared with those of onnxruntime. `extra_bytes` counts all that is resident
    beside the input, the output and the weights once: activations between layers, too.

    Parameters
    ----------
    networks : sequence of str
        Of :data:`tvm_directconv.bench.models.MODELS`.
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
            prepare_seconds=prepare_seconds,
            run_seconds=run_seconds,
            say=say,
        ):
            yield result.row(network)


def network_results(
    network: str,
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    repeats: int,
    *,
    prepare_seconds: float = PREPARE_SECONDS,
    run_seconds: float = RUN_SECONDS,
    say: Say = lambda _: None,
) -> list[Result]:
    """Do the same for one network, and return all that was found.

    Each contestant has a process of its own for each number of threads, that has done nothing
    else: what it takes of memory is the network's.
    """
    OnnxRuntime().check(network=True)
    import onnx

    from ..models import model

    with files.scratch() as place, contextlib.ExitStack() as stack:
        source = place / f"{network}.onnx"
        made = model(network)
        onnx.save(made, source)
        x = np.random.default_rng(0).standard_normal(NETWORK_SHAPE, np.float32)
        np.save(place / "x.npy", x)
        say(f"{network}: the right output")
        expected = _right_output(source, prepare_seconds)
        plain_bytes = x.nbytes + expected.nbytes + _weight_bytes(made)
        peaks = [Seat(Peak(), number, layers=False) for number in threads]
        seats = [Seat(each, number, layers=False) for number in threads for each in contestants]
        for seat in [*peaks, *seats]:
            stack.callback(seat.close)
        # What is converted is put beside the source, and may depend on the number of threads.
        sources = {number: place / str(number) / source.name for number in threads}
        for link in sources.values():
            link.parent.mkdir()
            link.symlink_to(source)
        match = _Match(seats, peaks, prepare_seconds, run_seconds)
        for result, seat in zip(match.results, seats, strict=True):
            say(f"{network}: {result.contestant.name}, {result.threads} thread(s)")
            seconds = None
            path = str(sources[result.threads])
            if type(result.contestant).convert is not Contestant.convert:
                match.prepare(result, "convert", onnx=path)
                path, seconds = result.found.get("path", path), result.found.get("seconds")
                seat.close()  # Whose memory is anything but untouched.
            match.prepare(result, "network", folder=str(place), path=path)
            result.found["compile_seconds"] = seconds
            _check(result, place, expected, plain_bytes, NETWORK_TOLERANCE)
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


def _check(
    result: Result, place: Path, expected: np.ndarray, plain_bytes: int, tolerance: float
) -> None:
    """Compare the output of what was just prepared, and count its memory."""
    if result.status != "ok":
        return
    output = np.load(place / "output.npy")
    if output.size != expected.size:
        result.fail("wrong", f"the output has {output.size} values; expected {expected.size}")
        return
    error = max_error(output.ravel(), expected.ravel())
    result.max_error = error
    exact = result.found["extra_bytes"]
    beside = max(0, result.found["running_bytes"] - plain_bytes)
    result.extra_bytes = beside if exact is None else exact
    if error > tolerance:
        result.fail("wrong", f"the largest error is {error:.2g}; expected at most {tolerance:g}")


def _right_output(source: Path, seconds: float) -> np.ndarray:
    seat = Seat(OnnxRuntime(), 1, layers=False)
    try:
        seat.ask("network", seconds, folder=str(source.parent), path=str(source))
        return np.asarray(np.load(source.parent / "output.npy"))
    finally:
        seat.close()


def _weight_bytes(model: Any) -> int:
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(constant).nbytes for constant in model.graph.initializer)
