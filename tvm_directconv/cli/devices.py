"""``tvm-directconv devices``."""

import argparse
from dataclasses import asdict

from ..hardware.device import Device
from ..hardware.device_files import devices
from ..hardware.lookup import device as find_device
from ._output import Row, add_format, for_people, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "name",
        nargs="*",
        metavar="NAME",
        help="show everything about these: name, 'native', a device file, or a TVM target",
    )
    parser.add_argument(
        "--native", action="store_true", help="mark the device of this machine (loads TVM)"
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """List devices, or show all about some of them."""
    found = [find_device(name) for name in args.name] or devices()
    rows = [_facts(device) for device in found]
    people = [_summary(device) for device in found]
    if args.native:
        here = find_device("native").name
        rows = [{**row, "here": row["name"] == here} for row in rows]
        people = [{**row, "here": "here" if row["name"] == here else ""} for row in people]
    if args.name and for_people(args.format):
        for row in rows:
            facts = [{"fact": key, "value": value} for key, value in row.items()]
            write(render(facts, args.format) + "\n")
    else:
        write(render(rows, args.format, people))
    return 0


def _facts(device: Device) -> Row:
    facts = asdict(device)
    facts["instructions"] = [
        f"{rate.instruction}: {rate.per_cycle:g} per cycle, latency {rate.latency:g}"
        for rate in device.instructions
    ]
    return {
        "name": device.name,
        "description": device.description,
        **facts,
        "lanes": [rate.lanes for rate in device.rates()],
        "fma_per_cycle": [rate.per_cycle for rate in device.rates()],
        "peak_flops_per_cycle": device.peak().flops_per_cycle,
    }


def _summary(device: Device) -> Row:
    caches = (device.l1d_bytes, device.l2_bytes, device.l3_bytes)
    return {
        "name": device.name,
        "description": device.description,
        "boards": device.boards,
        "schedule": device.schedule,
        "lanes": [rate.lanes for rate in device.rates()],
        "FMA/cycle": [f"{rate.per_cycle:g}" for rate in device.rates()],
        "registers": device.vector_registers,
        "L1, L2, L3 KiB": [size // 1024 for size in caches],
        "falls back on": device.chain[1:],
    }
