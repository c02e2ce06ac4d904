"""What scripts/check_search runs: an exhaustive sweep, and searches over its figures."""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np

import tvm_directconv as dc
from tvm_directconv.case import Case
from tvm_directconv.cli._progress import Progress
from tvm_directconv.tuning.layer import Layer
from tvm_directconv.tuning.runners.local import LocalRunner
from tvm_directconv.tuning.search import FAILED, Evolution
from tvm_directconv.tuning.space import Space
from tvm_directconv.tuning.tune import Budget, Tuner

LAYERS = [
    "vgg16:conv1_1",  # three channels
    "resnet50:l4b1_3x3",  # 3x3, 14 columns
    "alexnet:conv2",  # 5x5, 27 columns
    "googlenet:4e_5x5r",  # 1x1, few output channels
    "resnet50:l5b0_down",  # 1x1 with stride, 7 columns
    "resnet50:l5b1_1x1a",  # 1x1, more weights than the cache holds
]
TRIALS = 64
SEEDS = range(5)


def main(specs: list[str]) -> None:
    """Print, for each layer, how far searches got."""
    everything = Budget(trials=10_000, patience=10_000)
    device = dc.device("native")
    with closing(LocalRunner(device, threads=1)) as runner, Progress() as progress:
        layers = Tuner(
            dc.workloads(specs or LAYERS),
            device,
            runner,
            budget=everything,
            strategy="exhaustive",
            folder=Path("sweep_logs"),
            on_trial=progress.show,
        ).run()
    print(
        "| layer | points | best over the model's | search from the model's | bad start | search |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for layer in layers:
        costs = measured(layer)
        best = min(costs.values())
        # The slowest that works at all: where somebody without a model might begin.
        bad = max((b for b in costs if costs[b] < FAILED), key=costs.__getitem__)
        guided = [reached(layer.space, costs, seed, guided=True) / best for seed in SEEDS]
        start = Space(Case.of(layer.workload, device), start=bad)
        blind = [reached(start, costs, seed, guided=False) / best for seed in SEEDS]
        print(
            f"| {layer.name} | {len(costs)} | {1 / best:.3f} | {_percent(guided)} "
            f"| {best / costs[bad]:.1%} | {_percent(blind)} |"
        )


def measured(layer: Layer) -> dict[dc.Blocking, float]:
    """Return the cost of each point in units of the model's choice."""
    return {
        layer.space.points[point]: 1 / record.over_model if record.over_model else FAILED
        for point, record in layer.records.items()
    }


def reached(space: Space, costs: dict[dc.Blocking, float], seed: int, guided: bool) -> float:
    """Return the cost of the best of the first points that a search asks for."""
    search = Evolution(space, seed, guided)
    found: list[float] = []
    while len(found) < TRIALS and (points := search.ask(min(16, TRIALS - len(found)))):
        told = [costs.get(space.points[point], FAILED) for point in points]
        search.tell(points, told)
        found += told
    return min(found)


def _percent(over_best: list[float]) -> str:
    least, usual = 1 / max(over_best), 1 / float(np.median(over_best))
    return f"{usual:.1%} of the best (worst of {len(over_best)} seeds: {least:.1%})"


main(sys.argv[1:])
