"""What scripts/fingerprint runs."""

import hashlib
from collections.abc import Iterator

import tvm_directconv as dc
from tvm_directconv.blocking import choose, default_input_layout
from tvm_directconv.build import scheduled
from tvm_directconv.compute import Epilogue, symbol_of
from tvm_directconv.lowering.pipeline import lower

# One for each instruction set, with the most different schedules.
COMPILED = "x86-64-v3", "x86-64-v4", "cortex-a72"
EPILOGUES = None, Epilogue(bias=True, residual=True, activation="silu")
STEP = 4  # Of all layers, every fourth one is lowered.


def main() -> None:
    layers = list({str(w): w for network in dc.networks() for w in dc.workloads(network)}.values())
    for target in dc.devices():
        for threads in (1, 2):
            for layer in layers:
                print(target.name, threads, layer, choose(layer, target, threads))
    for line in lowered(layers[::STEP]):
        print(line)


def lowered(layers: list[dc.ConvWorkload]) -> Iterator[str]:
    for name in COMPILED:
        for number, layer in enumerate(layers):
            target, threads = dc.device(name), 1 + number % 2
            layout = default_input_layout(layer, target)
            epilogue = EPILOGUES[number // 2 % 2]
            sch = scheduled(
                layer, target, choose(layer, target, threads), threads, layout, None, epilogue
            )
            function = sch.mod[symbol_of(layer, epilogue)]
            code = lower(function).script()
            yield f"{name} {layer} code {hashlib.sha256(code.encode()).hexdigest()[:16]}"


if __name__ == "__main__":
    main()
