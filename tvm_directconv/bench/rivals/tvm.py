"""TVM without this package's schedules."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ... import files
from ...hardware.lookup import device
from ...layout import aligned_zeros
from ...pool import size_pool
from ...workload import ConvWorkload
from .base import DIRECT, Contestant, Failed, Prepared


@dataclass(frozen=True, kw_only=True)
class Untuned(Contestant):
    """What TVM makes of a convolution on its own: its loops as they are, with LLVM's best."""

    name: str = "TVM, untuned"
    algorithm: str = DIRECT
    includes: str = (
        "From plain to plain: the input is copied into a padded one, and the loops run in one "
        "thread, as TVM's operators come without a schedule for CPUs."
    )
    colour: str = "#9e9ac8"
    marker: str = "X"

    title: ClassVar = "TVM"
    packages: ClassVar = {"tvm": ""}

    def library(self) -> str:
        import tvm

        return f"TVM {tvm.__version__}"

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import tvm_ffi

        function, seconds = self._function(workload, threads)
        out = aligned_zeros(workload.output_shape)
        taps = aligned_zeros(weight.shape)
        taps[...] = weight
        arrays = tuple(tvm_ffi.from_dlpack(array) for array in (x, taps, out))
        size_pool(threads)
        return Prepared(call=lambda: function(*arrays), output=lambda: out, compile_seconds=seconds)

    def _function(self, workload: ConvWorkload, threads: int) -> tuple[Callable[..., None], float]:
        return _untuned(workload, threads)


@dataclass(frozen=True, kw_only=True)
class Tuned(Untuned):
    """The same after MetaSchedule has searched its own space for a schedule.

    It takes minutes for a layer: give it more time for preparing.

    Attributes
    ----------
    trials : int
        Candidates that are measured for each layer.
    """

    name: str = "TVM, tuned"
    includes: str = (
        "From plain to plain, weights included, as MetaSchedule's search has scheduled it."
    )
    colour: str = "#08306b"
    trials: int = 64

    packages: ClassVar = {
        "tvm": "",
        "xgboost": ", which MetaSchedule learns with,",
        "cloudpickle": ", which MetaSchedule sends candidates with,",
    }
    install: ClassVar = "pip install 'tvm-directconv[tune]'"

    def _function(self, workload: ConvWorkload, threads: int) -> tuple[Callable[..., None], float]:
        return _tuned(workload, threads, self.trials)


def _module(workload: ConvWorkload) -> Any:
    from tvm import IRModule, te, topi

    x = te.placeholder(workload.input_shape, "float32", "x")
    weight = te.placeholder(workload.weight_shape, "float32", "weight")
    y = topi.nn.conv(
        x,
        weight,
        list(workload.stride),
        list(workload.padding),
        list(workload.dilation),
        workload.groups,
        "NCHW",
        "OIHW",
    )
    return IRModule({"main": te.create_prim_func([x, weight, y])})


@lru_cache(maxsize=1)  # For other places in memory.
def _untuned(workload: ConvWorkload, threads: int) -> tuple[Callable[..., None], float]:
    import tvm

    begin = time.perf_counter()
    target = device("native").target(threads)
    function = tvm.compile(_module(workload), target)["main"]
    return function, time.perf_counter() - begin


@lru_cache(maxsize=1)
def _tuned(workload: ConvWorkload, threads: int, trials: int) -> tuple[Callable[..., None], float]:
    import tvm
    from tvm.s_tir import meta_schedule as ms

    begin = time.perf_counter()
    module, target = _module(workload), device("native").target(threads)
    with files.scratch() as folder:
        database = ms.tune_tir(
            module,
            target,
            str(folder),
            trials,
            num_trials_per_iter=min(trials, 32),
            builder=ms.builder.LocalBuilder(max_workers=1, f_build=_build, timeout_sec=60),
            runner=ms.runner.LocalRunner(timeout_sec=60),
            seed=0,
        )
        schedule = ms.tir_integration.compile_tir(database, module, target)
    if schedule is None:
        raise Failed(f"MetaSchedule has measured none of {trials} candidates")
    function = tvm.compile(schedule.mod, target)["main"]
    return function, time.perf_counter() - begin


def _build(module: Any, target: Any, _params: Any) -> Any:
    """Build a candidate; TVM's own way loads every tensor intrinsic first, which takes 20 s."""
    import tvm

    return tvm.tirx.build(module, target=target)
