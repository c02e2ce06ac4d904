"""What scripts/fingerprint runs."""

import hashlib
from collections.abc import Iterator

import tvm_directconv as dc
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.epilogue import Epilogue
from tvm_directconv.lowering.pipeline import lower
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling

# One for each instruction set, with the most different schedules.
COMPILED = "x86-64-v3", "x86-64-v4", "cortex-a72"
EPILOGUES = None, Epilogue(bias=True, residual=True, activation="silu")
STEP = 4  # Of all layers, every fourth one is lowered.


def main() -> None:
    layers = list({str(w): w for network in dc.networks() for w in dc.workloads(network)}.values())
    for target in dc.devices():
        for threads in (1, 2):
            for layer in layers:
                print(target.name, threads, layer, choose(Case.of(layer, target, threads)))
    for line in lowered(layers[::STEP]):
        print(line)


def lowered(layers: list[dc.ConvWorkload]) -> Iterator[str]:
    for name in COMPILED:
        for number, layer in enumerate(layers):
            case = Case.of(layer, name, 1 + number % 2, epilogue=EPILOGUES[number // 2 % 2])

            function = scheduled(Tiling(case, choose(case))).mod[case.symbol]
            code = lower(function).script()
            yield f"{name} {layer} code {hashlib.sha256(code.encode()).hexdigest()[:16]}"


if __name__ == "__main__":
    main()
