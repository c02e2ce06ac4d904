"""What scripts/fit_model runs: a descent along one constant of the model after the other."""

import argparse
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import tvm_directconv as dc
from tvm_directconv.case import Case
from tvm_directconv.hardware.constants import ModelConstants
from tvm_directconv.logs import log_file
from tvm_directconv.logs.record import MODELLED
from tvm_directconv.model import estimate
from tvm_directconv.tiling import Tiling

LOGS = Path(dc.__file__).parents[1] / "tuning_logs"
# These say how caches and prefetchers are built; a fit would only find a number beside them.
FACTS = ("streams", "cache_way_bytes", "round_distance_bytes")
FACTORS = (0.8, 0.9, 0.97, 1.03, 1.1, 1.25)
WORST = 10


@dataclass(frozen=True)
class Measured:
    """What was run, and the part of the FMA peak that it reached."""

    tiling: Tiling
    of_peak: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fit_model", description=__doc__)
    parser.add_argument("logs", nargs="*", metavar="LOG", help="default: those of this package")
    parser.add_argument("--rounds", type=int, default=4, help="over all constants; default: 4")
    args = parser.parse_args()
    rows = measured(args.logs or sorted(LOGS.glob("*.jsonl")))
    if not rows:
        parser.error("no log has a measured blocking: expected some with of_peak")
    (now,) = {row.tiling.case.device.model for row in rows}
    fitted = fit(rows, now, args.rounds)
    print("| constant | now | fitted |\n| --- | ---: | ---: |")
    for name, value in asdict(now).items():
        print(f"| {name} | {value:g} | {getattr(fitted, name):.4g} |")
    for title, constants in {"now": now, "fitted": fitted}.items():
        report(title, rows, residuals(rows, constants))


def measured(paths: list[str | Path]) -> list[Measured]:
    """Return what logs say was run, and was not disturbed."""
    rows = []
    for record in (record for path in paths for record in log_file.read(path)):
        if record.of_peak and record.measured_by != MODELLED and not record.disturbed:
            case = Case.of(record.workload, record.device, record.threads, record.input_layout)
            rows.append(Measured(Tiling(case, record.blocking), record.of_peak))
    return rows


def residuals(rows: list[Measured], constants: ModelConstants) -> np.ndarray:
    """Return the logarithm of predicted over measured speed, for each row."""

    def of_peak(tiling: Tiling) -> float:
        case = tiling.case
        fitted = replace(case, device=replace(case.device, model=constants))
        return estimate(replace(tiling, case=fitted)).of_peak

    return np.log([of_peak(row.tiling) / row.of_peak for row in rows])


def fit(rows: list[Measured], constants: ModelConstants, rounds: int) -> ModelConstants:
    """Return the constants with the least mean square of the residuals, near those given."""
    least = np.square(residuals(rows, constants)).mean()
    for _ in range(rounds):
        before = least
        for name in asdict(constants):
            if name in FACTS:
                continue
            value = getattr(constants, name)
            for factor in FACTORS:
                tried = replace(constants, **{name: value * factor})
                mean = np.square(residuals(rows, tried)).mean()
                if mean < least:
                    constants, least = tried, mean
        if least > 0.999 * before:
            break
    return constants


def report(title: str, rows: list[Measured], errors: np.ndarray) -> None:
    """Print how far the model is off, and what it loses by choosing what it likes best."""
    print(f"\n{title}: predicted over measured speed")
    print("| device, threads | rows | p10 | p50 | p90 | model's favourite over the fastest |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.tiling.case.device.name, row.tiling.case.threads].append(number)
    for (device, threads), numbers in groups.items():
        p10, p50, p90 = np.exp(np.percentile(errors[numbers], [10, 50, 90]))
        print(
            f"| {device}, {threads} | {len(numbers)} | {p10:.3f} | {p50:.3f} | {p90:.3f} "
            f"| {favourites(rows, errors, numbers):.4f} |"
        )
    print("the worst:")
    for number in np.argsort(-np.abs(errors))[:WORST]:
        tiling, reached = rows[number].tiling, rows[number].of_peak
        print(
            f"  {tiling.case}, {tiling.case.threads} thread(s), {tiling.blocking.brief}: "
            f"{reached:.3f} of the peak, predicted {reached * np.exp(errors[number]):.3f}"
        )


def favourites(rows: list[Measured], errors: np.ndarray, numbers: list[int]) -> float:
    """Return the geometric mean over layers: speed of what the model likes best, over the best."""
    layers: dict[Case, list[int]] = defaultdict(list)
    for number in numbers:
        layers[rows[number].tiling.case].append(number)
    lost = []
    for tried in layers.values():
        speeds = np.array([rows[number].of_peak for number in tried])
        liked = speeds[np.argmax(speeds * np.exp(errors[tried]))]
        lost.append(np.log(liked / speeds.max()))
    return float(np.exp(np.mean(lost)))


if __name__ == "__main__":
    main()
