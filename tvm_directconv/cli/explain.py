"""``tvm-directconv explain``."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import prediction
from ..explanation import explain
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..prediction import Experience, Plan, Prediction
from ..specs import is_model
from ._options import (
    add_device,
    add_input_layout,
    add_logs,
    add_specs,
    add_threads,
    logs_of,
    rate,
    workloads_of,
)
from ._output import Row, add_format, as_json, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser, "of several convolutions, reasons are given with -v only")
    add_device(parser)
    add_threads(parser)
    add_input_layout(parser)
    parser.add_argument(
        "--ghz",
        type=rate,
        metavar="GHZ",
        help="clock that makes time of cycles; default: the nominal one of the device's file, for "
        "'native' what is measured",
    )
    add_logs(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the model predicts, and why it chooses the blockings it does."""
    device = find_device(args.device)
    with logs_of(args):
        workloads = workloads_of(args)
        models = [spec for spec in dict.fromkeys(args.spec) if is_model(spec)]
        clock = _clock(args, device)
        single = len(workloads) == 1 and not models and args.format == "table"
        texts = []
        if not single:
            found = _Found(
                device,
                args.threads,
                clock,
                prediction.predict(workloads, device, args.threads, args.input_layout),
                {
                    model: prediction.plan(model, device, args.threads, dict(args.input_shape))
                    for model in models
                },
                prediction.experience(device),
            )
            texts.append(found.text(args.format))
        if single or (args.verbose and args.format == "table"):
            texts += [
                explain(workload, device, args.threads, args.input_layout, clock.ghz)
                for workload in workloads
            ]
    write(f"\n\n{'-' * 80}\n\n".join(texts))
    return 0


@dataclass(frozen=True)
class _Clock:
    ghz: float | None
    source: str

    def __str__(self) -> str:
        return f"{self.ghz:.3g} GHz ({self.source})" if self.ghz else self.source


def _clock(args: argparse.Namespace, device: Device) -> _Clock:
    if args.ghz:
        return _Clock(args.ghz, "as given")
    if args.device == "native":
        from ..bench.peak import Clock

        return _Clock(Clock(device)(), "measured just now")
    if device.ghz:
        return _Clock(device.ghz, f"nominal, {device.boards[0]}" if device.boards else "nominal")
    return _Clock(None, "no clock is known: give one with --ghz for milliseconds")


@dataclass(frozen=True)
class _Found:
    """What there is to print of several convolutions."""

    device: Device
    threads: int
    clock: _Clock
    layers: Sequence[Prediction]
    plans: dict[str, Plan]
    experience: Experience | None

    def text(self, form: str) -> str:
        if form == "json":
            return as_json(self._everything())
        rows = [self._row(layer) for layer in self.layers]
        table = render(rows, form, [*map(self._for_people, rows)])
        if form == "csv":
            return table
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        paragraphs = [
            [f"{self.device.name}: {self.device.description}; {threads}; {self.clock}"],
            [table],
            self._in_all(),
            *(_memory(model, plan) for model, plan in self.plans.items()),
            ["Not in these figures", *prediction.LEFT_OUT, self._experience()],
        ]
        return "\n\n".join("\n  ".join(lines) for lines in paragraphs)

    def _milliseconds(self, layer: Prediction) -> float | None:
        return layer.milliseconds(self.clock.ghz) if self.clock.ghz else None

    def _cycles(self) -> float:
        return sum(layer.cycles * layer.workload.count for layer in self.layers)

    def _row(self, layer: Prediction) -> dict[str, Any]:
        workload = layer.workload
        return {
            "layer": workload.name,
            "count": workload.count,
            "workload": str(workload),
            "gflop": workload.flops / 1e9,
            "milliseconds": self._milliseconds(layer),
            "cycles": layer.cycles,
            "share": layer.cycles * workload.count / self._cycles(),
            "of_peak": layer.of_peak,
            "weight_bytes": layer.weight_bytes,
            "activation_bytes": layer.activation_bytes,
            "im2col_bytes": layer.im2col_bytes,
            "blocking": layer.blocking.to_dict(),
            "blocking_source": layer.blocking_source,
        }

    def _for_people(self, row: dict[str, Any]) -> Row:
        time = {"ms": row["milliseconds"]} if self.clock.ghz else {"Mcycles": row["cycles"] / 1e6}
        return {
            "layer": row["layer"] or row["workload"],
            "count": row["count"],
            "GFLOP": row["gflop"],
            **time,
            "share": f"{row['share']:.1%}",
            "of peak": f"{row['of_peak']:.1%}",
            "weights, MB": row["weight_bytes"] / 1e6,
            "in and out, MB": row["activation_bytes"] / 1e6,
            "im2col, MB": row["im2col_bytes"] / 1e6,
        }

    def _total(self) -> dict[str, Any]:
        counts = [(layer, layer.workload.count) for layer in self.layers]
        cycles = self._cycles()
        return {
            "convolutions": sum(count for _, count in counts),
            "gflop": sum(layer.workload.flops * count for layer, count in counts) / 1e9,
            "milliseconds": cycles / self.clock.ghz / 1e6 if self.clock.ghz else None,
            "cycles": cycles,
            "of_peak": sum(layer.of_peak * layer.cycles * n for layer, n in counts) / cycles,
            "weight_bytes": sum(layer.weight_bytes * count for layer, count in counts),
            "activation_bytes": max(layer.activation_bytes for layer in self.layers),
            "im2col_bytes": max(layer.im2col_bytes for layer in self.layers),
        }

    def _in_all(self) -> list[str]:
        total = self._total()
        time = (
            f"{total['milliseconds']:.4g} ms" if self.clock.ghz else f"{total['cycles']:.4g} cycles"
        )
        number = total["convolutions"]
        return [
            f"Predicted: {time} for {number} convolution{'s' if number > 1 else ''} of "
            f"{total['gflop']:.3g} GFLOP in all, {total['of_peak']:.1%} of the peak",
            f"weights {_megabytes(total['weight_bytes'])} in all, input and output up to "
            f"{_megabytes(total['activation_bytes'])}; im2col would take up to "
            f"{_megabytes(total['im2col_bytes'])} more",
        ]

    def _experience(self) -> str:
        known = self.experience
        if known is None:
            return "how far off the model is: nothing was measured yet"
        where = ", ".join(known.devices)
        elsewhere = "" if known.devices == (self.device.name,) else f" (none on {self.device.name})"
        return (
            f"how far off the model is: {known.layers} layers measured on {where}{elsewhere} took "
            f"{known.p50:.2f} of their predicted time in the median, {known.p10:.2f} to "
            f"{known.p90:.2f} without the tenth at either end"
        )

    def _everything(self) -> dict[str, Any]:
        return {
            "device": self.device.name,
            "threads": self.threads,
            "ghz": self.clock.ghz,
            "clock": self.clock.source,
            "layers": [self._row(layer) for layer in self.layers],
            "total": self._total(),
            "models": {model: asdict(plan) for model, plan in self.plans.items()},
            "left_out": list(prediction.LEFT_OUT),
            "measured_over_predicted": self.experience and asdict(self.experience),
        }


def _memory(model: str, plan: Plan) -> list[str]:
    sizes = ", ".join(f"{name} {_megabytes(size)}" for name, size in plan.memory.items())
    lines = [f"Memory of {model}: {sizes}", f"im2col would add {_megabytes(plan.im2col_bytes)}"]
    if plan.others:
        calls = ", ".join(f"{count} x {name}" for name, count in plan.others.items())
        lines.append(f"{sum(plan.others.values())} steps are no convolutions: {calls}")
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size else "0"
